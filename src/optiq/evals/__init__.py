"""What a model can do: tasks, their runs with a result per sample, statistics and reports."""
