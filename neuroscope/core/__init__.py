"""Core: frozen data that needs no pipeline. Everything else imports from here, and nothing here imports from elsewhere."""
