"""How long the LanceDB table keeps what no reader of a tagged version needs."""

KEEP_DAYS = 7
KEEP_DAYS_HELP = (
    "Days for which old versions, and files of writers that may still run, are kept. Tagged "
    "versions are always kept. Less than 3 only if nothing else runs."
)
