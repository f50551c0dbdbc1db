"""The client of an emulated bucket: `fill` puts the sample's inputs into bucket bkt, `list` prints its keys.

Called by tests/tests/buckets.rs: bucket_client.py URL fill|list SAMPLE_FOLDER. Needs boto3.
"""

import os
import sys
import time

import boto3

url, what, sample = sys.argv[1:]
client = boto3.client(
    "s3",
    endpoint_url=url,
    aws_access_key_id="AKIDOFATEST",
    aws_secret_access_key="hunter2secretofatest",
    region_name="us-east-1",
)
if what == "fill":
    for attempt in range(100):
        try:
            client.create_bucket(Bucket="bkt")
            client.upload_file(os.path.join(sample, "train.parquet"), "bkt", "in/train-0.parquet")
            break
        except Exception:
            if attempt == 99:
                raise
            time.sleep(0.2)
    tokenizer = os.path.join(sample, "tokenizer")
    for name in os.listdir(tokenizer):
        client.upload_file(os.path.join(tokenizer, name), "bkt", f"tokenizer/{name}")
else:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="bkt"):
        for entry in page.get("Contents", []):
            print(entry["Key"])
