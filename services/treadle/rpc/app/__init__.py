"""A process of the mesh: its settings, and the services that it runs."""
