"""Former home of `homerlm.lab`."""
