"""Running a model: backends, processes, inputs."""
