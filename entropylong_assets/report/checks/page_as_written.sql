-- The stored page has the size and the hash that were recorded when it was written.
SELECT
    pages.path,
    pages.bytes AS bytes_written,
    stored.bytes AS bytes_found,
    pages.sha256 AS sha256_written,
    stored.sha256 AS sha256_found
FROM pages
LEFT JOIN stored ON stored.path = pages.path
WHERE stored.sha256 IS DISTINCT FROM pages.sha256
   OR stored.bytes IS DISTINCT FROM pages.bytes
