"""Who may do what: keys, certificates, tokens, roles, and where a head keeps its secrets."""
