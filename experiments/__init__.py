"""The scripts behind the tables and figures, by topic; README.md lists them. They run from the repository's root."""
