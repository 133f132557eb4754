"""Files may go while their rows stay; what was committed toward a modality is remembered"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

COLUMNS = {
    "instances": ("purging_at", "purged_at", "committed_at", "archived_at"),
    "results": ("purging_at", "purged_at"),
    "quarantine": ("purging_at", "purged_at"),
}


def upgrade() -> None:
    for table, names in COLUMNS.items():
        for name in names:
            op.add_column(table, sa.Column(name, sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    for table, names in COLUMNS.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            for name in names:
                batch_op.drop_column(name)
