"""A modality is bound to its certificate, its user and a number of associations"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Those without NULL have a default here, so that no table is rebuilt.
    for column in (
        sa.Column("certificates", sa.JSON(), nullable=False, server_default="[]"),
        sa.Column("tls_only", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("user_name", sa.String(length=255), nullable=True),
        sa.Column("passcode", sa.String(length=255), nullable=True),
        sa.Column("maximum_associations", sa.Integer(), nullable=True),
    ):
        op.add_column("modalities", column)


def downgrade() -> None:
    with op.batch_alter_table("modalities", schema=None) as batch_op:
        for name in ("maximum_associations", "passcode", "user_name", "tls_only", "certificates"):
            batch_op.drop_column(name)
