"""A destination is asked what it holds, and left alone while it is away"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "commitments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("destination_id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["destination_id"], ["destinations.id"], name=op.f("fk_commitments_destination_id")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_commitments_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitments")),
        sa.UniqueConstraint("transaction_uid", name=op.f("uq_commitments_transaction_uid")),
    )
    op.create_index("ix_commitments_job_id", "commitments", ["job_id"])
    op.create_table(
        "commitment_items",
        sa.Column("commitment_id", sa.Integer(), nullable=False),
        sa.Column("delivery_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["commitment_id"], ["commitments.id"], name=op.f("fk_commitment_items_commitment_id")
        ),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["deliveries.id"], name=op.f("fk_commitment_items_delivery_id")
        ),
        sa.PrimaryKeyConstraint("commitment_id", "delivery_id", name=op.f("pk_commitment_items")),
    )
    op.create_index("ix_commitment_items_delivery_id", "commitment_items", ["delivery_id"])
    # Defaults, so that no table is rebuilt. What was sent before stays "sent": nothing is asked.
    moment = sa.DateTime(timezone=True)
    for table, column in (
        ("deliveries", sa.Column("confirm_at", moment, nullable=True)),
        ("deliveries", sa.Column("confirmed_at", moment, nullable=True)),
        ("deliveries", sa.Column("asked", sa.Integer(), nullable=False, server_default="0")),
        ("destinations", sa.Column("failures", sa.Integer(), nullable=False, server_default="0")),
        ("destinations", sa.Column("closed_until", moment, nullable=True)),
    ):
        op.add_column(table, column)
    # Asked in every round, and empty but for what is under way: never a scan.
    op.create_index(
        "ix_deliveries_confirm_at",
        "deliveries",
        ["confirm_at"],
        sqlite_where=sa.text("confirm_at IS NOT NULL"),
        postgresql_where=sa.text("confirm_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_deliveries_confirm_at", "deliveries")
    with op.batch_alter_table("destinations", schema=None) as batch_op:
        batch_op.drop_column("closed_until")
        batch_op.drop_column("failures")
    # An older version knows of nothing after "sent".
    deliveries = sa.table("deliveries", sa.column("state"))
    op.execute(
        deliveries.update()
        .where(deliveries.c.state.in_(("committed", "confirmed", "unconfirmed")))
        .values(state="sent")
    )
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_column("asked")
        batch_op.drop_column("confirmed_at")
        batch_op.drop_column("confirm_at")
    op.drop_table("commitment_items")
    op.drop_table("commitments")
