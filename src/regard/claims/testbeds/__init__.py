"""What claims are measured on: digits, drawn scenes, pages, and the standard library's source as text."""
