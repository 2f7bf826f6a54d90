"""Drawing poses, contact sheets and plots. Nothing here changes what a stage computes."""
