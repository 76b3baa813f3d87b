"""The scheduler of collections and the lease manager, as plugins."""

from __future__ import annotations

from typing import Any

from orlop.core import duration
from orlop.core.plugin import InitContext, PluginType, Registration
from orlop.metadata.gc.scheduler import SchedulerConfig


async def _scheduler(context: InitContext) -> Any:
    from orlop.metadata.gc.collector import Collector
    from orlop.metadata.gc.scheduler import Scheduler

    metadata = context.get(PluginType.METADATA)
    exchange = context.get(PluginType.EVENT)
    collector = Collector(
        metadata.db,
        exchange,
        metadata.snapshots,
        metadata.content,
        others=metadata.on_collected,
        on_lease=metadata.leases.on_end,
    )
    scheduler = Scheduler(collector.collect, context.config)
    bounds = context.config.bounded()
    context.meta.exports |= {
        "PauseThreshold": f"{bounds.pause_threshold:g}",
        "DeletionThreshold": str(bounds.deletion_threshold),
        "MutationThreshold": str(bounds.mutation_threshold),
        "ScheduleDelay": duration.render(int(bounds.schedule_delay * 1e9)),
    }
    metadata.db.on_mutation.append(scheduler.mutated)
    metadata.images.collect = metadata.leases.collect = scheduler.collect_now
    context.closing.append(scheduler.stop)
    scheduler.start()
    return scheduler


async def _leases(context: InitContext) -> Any:
    return context.get(PluginType.METADATA).leases


REGISTRATIONS = (
    Registration(PluginType.GC, "scheduler", _scheduler, (PluginType.METADATA, PluginType.EVENT), SchedulerConfig),
    Registration(PluginType.LEASE, "manager", _leases, (PluginType.METADATA, PluginType.GC)),
)
