"""A client of the API whose methods are all made from the discovery document, as
those of Arvados' Python tools are, by the same library."""
import json
import os

import httplib2
from googleapiclient import discovery
from googleapiclient.errors import HttpError

API = "https://" + os.environ["ARVADOS_API_HOST"]
CA = os.environ["SSL_CERT_FILE"]


class Http(httplib2.Http):
    def request(self, uri, method="GET", body=None, headers=None, **kw):
        headers = dict(headers or {})
        headers["Authorization"] = "OAuth2 " + os.environ["ARVADOS_API_TOKEN"]
        return super().request(uri, method, body, headers, **kw)


def refused(status, call):
    try:
        call.execute()
    except HttpError as e:
        assert e.resp.status == status, e
        return
    raise AssertionError("was not refused")


_, document = httplib2.Http(ca_certs=CA).request(API + "/discovery/v1/apis/arvados/v1/rest")
api = discovery.build_from_document(json.loads(document), http=Http(ca_certs=CA))

me = api.users().current().execute()
assert me["is_active"] and api.configs().get().execute()["ClusterID"] == me["uuid"][:5]
assert len(api.keep_services().accessible().execute()["items"]) == 1

made = [api.collections().create(body={"collection": {"name": "c"}}, ensure_unique_name=True).execute() for _ in range(2)]
assert made[1]["name"] == "c (%s)" % made[1]["uuid"][-15:], made
top = api.collections().create(body={"name": "attributes at the top"}).execute()
assert top["name"] == "attributes at the top"
refused(422, api.collections().create(body={"collection": {"name": "c"}}))
assert api.collections().update(uuid=top["uuid"], body={"collection": {"properties": {"a": 1}}}).execute()["properties"] == {"a": 1}
assert api.collections().get(uuid=top["portable_data_hash"]).execute()["uuid"] == top["portable_data_hash"]
listed = api.collections().list(filters=json.dumps([["name", "like", "c%"]]), order="name desc", limit=1, select=json.dumps(["name"])).execute()
assert listed["items_available"] == 2 and [i["name"] for i in listed["items"]] == [made[1]["name"]], listed
# Longer than a URL may be: sent as a POST that means GET.
assert api.collections().list(filters=json.dumps([["name", "!=", "x" * 4000]]), count="none").execute()["limit"] == 100

project = api.groups().create(body={"group": {"name": "p", "group_class": "project"}}).execute()["uuid"]
api.collections().update(uuid=made[0]["uuid"], body={"collection": {"owner_uuid": project}}).execute()
inside = api.groups().contents(uuid=project, order=json.dumps(["uuid asc"]), count="none", filters=json.dumps([["uuid", "is_a", "arvados#collection"]])).execute()
assert [i["uuid"] for i in inside["items"]] == [made[0]["uuid"]], inside
assert api.groups().shared(limit=1).execute()["items"] == []
assert project in [g["uuid"] for g in api.groups().list(filters=json.dumps([["owner_uuid", "=", me["uuid"]]])).execute()["items"]]
link = api.links().create(body={"link": {"link_class": "docker_image_hash", "name": "n", "head_uuid": top["uuid"]}}).execute()
assert api.links().list(filters=json.dumps([["uuid", "=", link["uuid"]]])).execute()["items"][0]["head_kind"] == "arvados#collection"
assert api.collections().delete(uuid=top["uuid"]).execute()["is_trashed"]
refused(404, api.collections().get(uuid=top["uuid"]))
assert api.collections().get(uuid=top["uuid"], include_trash=True).execute()["is_trashed"]
refused(404, api.containers().current())
assert api.container_requests().list(limit=0).execute()["items_available"] == 0
print("fine")
