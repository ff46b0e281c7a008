"""Editing: closed-form edits of what layers read, and writing interventions into weights or LoRA files."""

from neuroscope.editing._edit import edit, plan_edit
from neuroscope.editing.fold import Folded, fold
from neuroscope.editing.loco_edit import LocoEdit
from neuroscope.editing.lora import export_lora

__all__ = ["Folded", "LocoEdit", "edit", "export_lora", "fold", "plan_edit"]
