"""From pictures, videos and motion captures to a table of poses."""
