"""The built-in figure: its joints, its flesh, its postures, and the renderer."""
