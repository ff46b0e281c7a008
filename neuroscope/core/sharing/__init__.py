"""Results for others to see: summaries, their HTML, the Hugging Face hub and its model cards."""
