"""How far the models that judged pairs can be trusted; nothing where only verifiers judged."""

from ixc.report.blocks import Block, Table
from ixc.report.record import Record
from ixc.report.svg import number, percent

_KAPPAS = {"llm/cohen_kappa": "both: Cohen's kappa", "llm/fleiss_kappa": "all: Fleiss' kappa"}


def judges(record: Record) -> Block | None:
    """How each judge judged, and what it cost."""
    metrics = record.metrics("judge")
    # `llm/<judge>/pairs` is there for every judge.
    keys = [key for key in metrics if key.startswith("llm/") and key.endswith("/pairs")]
    names = [key.split("/")[1] for key in keys]
    rows = [_row(metrics, name) for name in names]
    head = (
        "judge",
        "pairs",
        "same winner in both orders",
        "position bias",
        "length bias",
        "US dollars",
    )
    caption = (
        "Biases run from -1 to 1, and 0 is none. Position: the answer shown first wins, less the second. "
        "Length: the longer answer wins, less the shorter, which may be right. Dollars: in all runs, as the prices "
        "in params.yaml have it."
    )
    return Table(head, rows, caption) if rows else None


def _row(metrics: dict[str, float], name: str) -> list[str]:
    """A judge as a line of the table."""

    def cell(what: str, form: str) -> str:
        """A metric of the judge as text."""
        value = metrics.get(f"llm/{name}/{what}")
        return "–" if value is None else format(value, form)

    consistency = metrics.get(f"llm/{name}/consistency")
    return [
        name,
        cell("pairs", ",.0f"),
        "–" if consistency is None else percent(consistency),
        cell("position_bias", "+.2f"),
        cell("length_bias", "+.2f"),
        cell("spent", ",.2f"),
    ]


def judges_agree(record: Record) -> Block | None:
    """How far several judges agree beyond chance."""
    metrics = record.metrics("judge")
    rows = [[title, number(metrics[key])] for key, title in _KAPPAS.items() if key in metrics]
    if "llm/agreement" in metrics:
        rows.insert(0, ["one verdict, share of the pairs", percent(metrics["llm/agreement"])])
    for key in metrics:
        if key.startswith("llm/cohen_kappa/"):
            both = " and ".join(key.split("/")[2:])
            rows.append([f"{both}: Cohen's kappa", number(metrics[key])])
    kappa = "Kappa: 1 is agreement on every pair, 0 as much as by chance."
    caption = f"{kappa} The odd one of several judges has low values."
    return Table(("agreement of the judges", "value"), rows, caption) if rows else None
