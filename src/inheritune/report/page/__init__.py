"""The page: its sections, figures and templates, and how it is saved."""
