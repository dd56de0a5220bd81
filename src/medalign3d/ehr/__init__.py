"""Electronic health records: schema, label rules, harmonization, person links, text, questions and splits."""
