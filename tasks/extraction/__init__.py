"""From users' files to rows of poses: the gate for files, MediaPipe, worker processes, the table of poses."""
