"""One sequence step by step: what is asked, what is computed, and how it is written."""
