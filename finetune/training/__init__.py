"""Fine-tuning: what learns, at which rate, for how long, and what is kept."""
