"""A result has forms: what each destination gets, and the prediction to build more from"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

FIRST_FORMS = {"seg": "seg:binary", "sr": "sr:comprehensive-3d:viewer>seg:binary"}


def upgrade() -> None:
    op.add_column("jobs", sa.Column("prediction", sa.String(length=255), nullable=True))
    op.add_column("jobs", sa.Column("prediction_sha256", sa.String(length=64), nullable=True))
    op.add_column("job_destinations", sa.Column("layout", sa.JSON(), nullable=True))
    op.create_index(
        "ix_job_destinations_without_layout",
        "job_destinations",
        ["job_id"],
        sqlite_where=sa.text("layout IS NULL"),
        postgresql_where=sa.text("layout IS NULL"),
    )
    # A default, so that no table is rebuilt; every new row tells its form.
    form = sa.Column("form", sa.String(length=64), nullable=False, server_default="")
    op.add_column("results", form)

    jobs = sa.table("jobs", sa.column("id"), sa.column("state"))
    results = sa.table("results", sa.column("kind"), sa.column("form"))
    wanted = sa.table("job_destinations", sa.column("job_id"), sa.column("layout", sa.JSON()))
    for kind, form_of_old in FIRST_FORMS.items():
        op.execute(results.update().where(results.c.kind == kind).values(form=form_of_old))
    # What is finished was built in the forms of that time; the rest is laid out when it is.
    finished = sa.select(jobs.c.id).where(jobs.c.state == "done")
    op.execute(
        wanted.update()
        .where(wanted.c.job_id.in_(finished))
        .values(layout=list(FIRST_FORMS.values()))
    )


def downgrade() -> None:
    with op.batch_alter_table("results", schema=None) as batch_op:
        batch_op.drop_column("form")
    op.drop_index("ix_job_destinations_without_layout", "job_destinations")
    with op.batch_alter_table("job_destinations", schema=None) as batch_op:
        batch_op.drop_column("layout")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("prediction_sha256")
        batch_op.drop_column("prediction")
