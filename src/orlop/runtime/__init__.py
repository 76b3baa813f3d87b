"""The daemon's side of tasks: shims are started, found again, and asked; what they leave behind is removed."""
