"""What every room uses: errors, files, experiments, checkpoints."""
