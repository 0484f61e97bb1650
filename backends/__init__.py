"""How operators are computed: one folder a device. Discovery finds them; nothing imports them by name."""

if __name__ != "bnb_core.backends":
    raise ImportError(
        f"the package {__name__!r} is part of bnb_core and has one name only: write `import bnb_core.backends`"
    )
