"""What every package uses: errors, files, checkpoints, processes, the skeleton."""
