"""`polymodal recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..base.options import Json

ORDER = 51


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("recipes")(recipes)


def recipes(
    names: Annotated[list[str] | None, typer.Argument(
        metavar="[NAME]...", show_default=False,
        help="Show the records and every setting of these. Default: a list of all recipes.")] = None,
    system: Annotated[str | None, typer.Option(metavar="SYSTEM", help="List those of one system, such as bert.")] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="List those of one task, such as classify, or pretrain.")] = None,
    json: Json = False,
) -> None:
    """List the recipes that pretrain and finetune take, with size and measured cost."""
    from ...shared.errors import UserError
    from ..base.console import Console
    from ..run.recipe import recipe, record
    from ..run.records import known_recipes

    console = Console(json=json)
    if names:
        if system is not None or task is not None:
            raise UserError("--system and --task choose from the list: leave them out where recipes are named")
        about = {r.name: r.to_dict() for r in known_recipes()}
        found = [(name, recipe(name)) for name in names]
        console.finish({"recipes": [{**about.get(name, {}), "settings": settings.to_dict()} for name, settings in found]},
                       "\n\n".join("\n\n".join([*([record(name)] if name in about else []), settings.to_yaml().rstrip()])
                                   for name, settings in found))
        return
    listed = known_recipes(system, task)
    width = max(len(r.name) for r in listed)
    lines: list[str] = []
    for r in listed:
        lines.append(f"{r.name.ljust(width)}  {r.about}")
        if not (cost := r.record.get("cost", "")).startswith("not measured."):
            lines.append(f"{' ' * width}  cost: {cost}")
    console.finish({"recipes": [r.to_dict() for r in listed]}, "\n".join(lines))
