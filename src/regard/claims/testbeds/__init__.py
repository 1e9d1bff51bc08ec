"""What claims are measured on: digits, drawn scenes, pages, feature maps, and the standard library's source as text."""
