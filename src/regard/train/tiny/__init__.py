"""How the small model that ships is made: stages of practice, the loop, the corpus, its measures and its card."""
