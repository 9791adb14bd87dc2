"""Reports of workers elsewhere by HTTP: their types, and how one is read and becomes an event. No routes, no log."""
