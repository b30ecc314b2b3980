"""What a new model takes from where: `LayerPlan`, and reading the layers and parts that a user names."""
