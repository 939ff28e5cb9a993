"""Tasks: what each command does, as plain functions that print nothing. One verb per file."""
