"""Jobs: `optiq` commands as processes, in a queue on disk that outlives the workbench."""
