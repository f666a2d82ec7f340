"""Through NATS JetStream: a publisher near Postgres, and edges near the clients."""
