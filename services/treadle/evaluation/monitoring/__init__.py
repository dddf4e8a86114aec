"""Quality of what is deployed, from recorded predictions and labels."""
