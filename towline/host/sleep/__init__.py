"""Sleep of the machine: announced by the system, or noticed afterwards by its clocks."""
