"""Publishes trained models on the Hugging Face Hub, each with a model card."""
