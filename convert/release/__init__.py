"""A release: from one recipe to converted, compared and reported artifacts, doing only what is left to do."""
