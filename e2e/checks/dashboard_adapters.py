# SPDX-License-Identifier: Apache-2.0
"""A row about the sites of spec.adaptation, for the dashboard of rollouts."""

from e2e.checks.grafana import Panel, Query, Row


def build_adapters(chosen: str) -> Row:
    """`chosen` matches the deployments that the dashboard is about."""
    return Row(
        title="Adapters trained at sites",
        panels=(
            Panel(
                title="Sites",
                text="Sites of spec.adaptation by phase.",
                queries=(
                    Query(
                        expr="sum by (phase) (max by (namespace, deployment, phase) "
                        f"(slmops_adapter_sites{{{chosen}}}))",
                        legend="{{phase}}",
                    ),
                ),
                width=12,
            ),
            Panel(
                title="Trainings",
                text="Trainings that ended, by outcome: Accepted, or the reason that there is no adapter.",
                queries=(
                    Query(
                        expr="sum by (outcome) (increase("
                        f"slmops_adapter_trainings_total{{{chosen}}}[$__rate_interval]))",
                        legend="{{outcome}}",
                    ),
                ),
                width=12,
                stacked="normal",
            ),
        ),
    )
