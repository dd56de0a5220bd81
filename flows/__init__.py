"""The DVC graph as Prefect tasks: GPU slots, supervision, deployments; no science."""
