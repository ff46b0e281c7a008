"""Executors: where the images of a verb are made."""

from neuroscope.generation.executors.executor import Executor as Executor
from neuroscope.generation.executors.executor import Workers as Workers
from neuroscope.generation.executors.executor import make as make
from neuroscope.generation.executors.local import Local as Local
from neuroscope.generation.executors.ray_executor import Ray as Ray
from neuroscope.generation.executors.shard import Shard as Shard
from neuroscope.generation.executors.shard import ShardReport as ShardReport
from neuroscope.generation.executors.tasks import Part as Part
from neuroscope.generation.executors.tasks import Task as Task
from neuroscope.generation.executors.tasks import TaskContext as TaskContext
from neuroscope.generation.executors.tasks import Work as Work
