"""The same seam, one hop longer: a publisher beside Postgres, edges beside the clients."""
