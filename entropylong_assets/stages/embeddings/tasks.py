"""Tasks of sentence transformers: routes of asymmetric models, adapters of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from entropylong_assets.stages.embeddings.prompts import SideName, first_named
from entropylong_assets.stages.model_files import ModelError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def tasks_of(model: SentenceTransformer) -> list[str] | None:
    """Return the tasks that a model without router names; None if it names none.

    Models with adapters list them in their configuration (`lora_adaptations`, `task_names`).
    """
    config = getattr(model[0], "config", None) or getattr(
        getattr(model[0], "auto_model", None), "config", None
    )
    for name in ("lora_adaptations", "task_names"):
        tasks = getattr(config, name, None)
        if tasks:
            return [str(task) for task in tasks]
    return None


def resolve_task(model: SentenceTransformer, chosen: str | None, side: SideName) -> str | None:
    """Return the task of a side: the chosen one, or else the model's own.

    Without a choice it is `query` or `document`, as `encode_query` and `encode_document` pass it,
    unless the model names its tasks otherwise. None: the default route of a router. Raises
    ModelError if the model has no such task.
    """
    from sentence_transformers.base.modules import Router

    first, setting = model[0], f"embedding.{side}_task"
    if isinstance(first, Router):
        routes = {*first.sub_modules, *(task for task, _ in first.route_mappings if task)}
        # A route per kind of input serves all tasks.
        serves_all = any(key in first.route_mappings for key in ((None, "text"), (None, None))) or (
            "text" in first.sub_modules
        )
        if chosen is not None and chosen not in routes:
            raise ModelError(f"it has the tasks {', '.join(sorted(routes))}; correct {setting}")
        own = chosen or first_named(routes, side)
        if own is None and not serves_all and first.default_route is None:
            raise ModelError(f"set {setting} to one of its tasks: {', '.join(sorted(routes))}")
        return own
    if "task" not in model.get_model_kwargs():
        if chosen is not None:
            raise ModelError(f"it takes no task; remove {setting}")
        return side
    tasks = tasks_of(model)
    if tasks is None:
        return chosen or side
    own = chosen or first_named(tasks, side) or ("retrieval" if "retrieval" in tasks else None)
    if own not in tasks:
        raise ModelError(f"set {setting} to one of its tasks: {', '.join(tasks)}")
    return own


def input_module(model: SentenceTransformer, task: str | None) -> Any:
    """Return the module that takes texts with this task."""
    from sentence_transformers.base.modules import Router

    first = model[0]
    if isinstance(first, Router):
        return first.sub_modules[first._resolve_route(task=task, modality="text")][0]
    return first
