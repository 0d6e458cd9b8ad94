"""mount(2) and umount2(2)."""
