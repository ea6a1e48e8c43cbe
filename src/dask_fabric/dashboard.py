"""A preload that adds the page ``/fabric`` to a scheduler's dashboard.

``dask scheduler --preload dask_fabric.dashboard``, or in Dask's configuration
``distributed.scheduler.preload: [dask_fabric.dashboard]``.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

_NAME = "fabric"


def dask_setup(scheduler: Any) -> None:
    """Add the page to the scheduler's HTTP server, in the same way as Dask adds its own.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    """
    try:
        from bokeh.server.tornado import BokehTornado

        from dask_fabric.telemetry.dashboard.page import fabric_doc
    except ImportError as exc:
        logger.warning("No page /fabric: the dashboard cannot be imported (%s)", exc)
        return
    from distributed.dashboard.core import BokehApplication
    from distributed.dashboard.scheduler import template_variables
    from tornado.ioloop import IOLoop

    served = [
        app for app in scheduler.http_application.applications if isinstance(app, BokehTornado)
    ]
    if not served:
        logger.warning("No page /fabric: this scheduler has no dashboard")
        return
    variables = template_variables(scheduler)
    # Dask gives each of its pages this very list, so that all of them link to the new one.
    if _NAME not in variables["pages"]:
        variables["pages"].append(_NAME)
    page = BokehApplication(
        {f"/{_NAME}": fabric_doc},
        scheduler,
        prefix=served[0].prefix,
        template_variables=variables,
    )
    scheduler.http_application.add_application(page)
    page.initialize(IOLoop.current())
    page.start()
    logger.info("The page /%s of the dashboard is on port %d", _NAME, scheduler.http_server.port)
