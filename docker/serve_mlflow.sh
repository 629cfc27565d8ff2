#!/bin/sh
# Start an MLflow server with accounts on PostgreSQL; compose.yaml sets the environment.
#
# POSTGRES_PASSWORD and MLFLOW_ADMIN_PASSWORD are required. POSTGRES (host:port), ARTIFACTS, HOST_ADDRESS and PORT have the values of the
# container by default.
set -eu
: "${POSTGRES_PASSWORD:?set POSTGRES_PASSWORD}" "${MLFLOW_ADMIN_PASSWORD:?set MLFLOW_ADMIN_PASSWORD}"
server="mlflow:$POSTGRES_PASSWORD@${POSTGRES:-database:5432}/mlflow"
database="postgresql+psycopg2://$server"

# The accounts live in a file of settings, readable by this user only, not on the command line. In a schema of their own: both
# parts of MLflow keep the state of their migrations in a table of the same name.
umask 077
accounts="${HOME:-/tmp}/basic_auth.ini"
cat > "$accounts" <<END
[mlflow]
default_permission = READ
database_uri = $database?options=-csearch_path%%3Daccounts
admin_username = admin
admin_password = $MLFLOW_ADMIN_PASSWORD
END
python - "postgresql://$server" <<'END'
import sys
import psycopg2
with psycopg2.connect(sys.argv[1]) as connection, connection.cursor() as cursor:
    cursor.execute("CREATE SCHEMA IF NOT EXISTS accounts")
END
MLFLOW_AUTH_CONFIG_PATH="$accounts"
export MLFLOW_AUTH_CONFIG_PATH
exec mlflow server --app-name basic-auth --backend-store-uri "$database" \
    --artifacts-destination "${ARTIFACTS:-/artifacts}" --host "${HOST_ADDRESS:-0.0.0.0}" --port "${PORT:-5000}" --workers 2
