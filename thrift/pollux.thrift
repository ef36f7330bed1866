/**
 * The control contract between polluxd and everything that drives it (Cinder, Nova, polluxctl).
 *
 * Rules that hold for every call:
 *  - Transport: TLS 1.3 with client certificates, framed, binary protocol. The OU of the client certificate is its role:
 *    admin, cinder, compute or reader. There is no plaintext port.
 *  - Every object that a caller creates carries an id the caller chose (a UUID). Repeating a request with the same id and
 *    the same parameters answers what the first answered; the same id with other parameters is EXISTS.
 *  - Deleting what is not there succeeds: the state asked for holds.
 *  - A mutating call is durable when it returns.
 *  - `deadline_ms` in RequestContext bounds how long the service works on a call before it answers RETRY; 0 means the
 *    service's default. A call that answered RETRY may have happened: repeat it.
 *  - Sizes and offsets are bytes. Times are milliseconds since the Unix epoch. UUIDs are lower-case canonical text.
 *  - Field ids are never reused.
 */
namespace cpp pollux.rpc
namespace py pollux.rpc

/** Version of this contract; raised when a field or call is added. */
const i32 API_VERSION = 5

enum ErrorCode {
  /** A parameter is malformed or out of range; the message names it. */
  INVALID = 1,
  NOT_FOUND = 2,
  /** The id or name is taken by something that differs from the request. */
  EXISTS = 3,
  /** In use: attached, has an open data socket, or a job works on it. */
  BUSY = 4,
  /** The pool cannot hold it. */
  NO_SPACE = 5,
  UNSUPPORTED = 6,
  /** The caller's role, or the host's authorisation, does not allow it. */
  DENIED = 7,
  /** Not now; the same request later may succeed. */
  RETRY = 8,
  /** A fault of the service or of its device; its log says more. */
  INTERNAL = 9,
}

// Exceptions must be mutable in Python: contextlib sets the traceback of what passes through a context manager, and an
// immutable one would become a TypeError there.
exception PolluxError {
  1: required ErrorCode code,
  /** What failed, on which object, and what to do next. */
  2: required string message,
} (python.immutable = "false")

struct RequestContext {
  /** Names the request in both sides' logs, e.g. OpenStack's req-... */
  1: optional string request_id,
  2: optional i32 deadline_ms,
}

// ---------------------------------------------------------------- service

struct ServiceInfo {
  1: required string host_id,
  2: required string version,
  3: required i32 api_version,
  /** e.g. "scsi", "blk", "snapshots", "nbd"; absent means the feature is not there. */
  4: required set<string> capabilities,
  5: required i64 started_at_ms,
  6: required i32 reactors,
}

struct PoolSpace {
  1: required string pool_id,
  2: required string name,
  3: required i32 used_percent,
  /** The highest that was reached. */
  4: required i32 watermark_percent,
  5: required i64 free_bytes,
}

struct ServiceStats {
  1: required i32 pools,
  2: required i32 volumes,
  3: required i32 snapshots,
  4: required i32 attachments,
  5: required i32 sessions,
  6: required i64 uptime_ms,
  /** How full a pool may get, in percent, before it is shown here and in the log. */
  7: optional list<i32> watermarks_percent,
  /** The pools that have reached one, the fullest first. */
  8: optional list<PoolSpace> pools_filling_up,
  /** Freed space that the open pools gave back to their devices, since each was opened. */
  12: optional i64 discarded_bytes,
}

// ---------------------------------------------------------------- pools

enum BdevKind {
  /** Memory of the service; gone when it stops. For tests. */
  RAM = 1,
  /** A file or a kernel block device through io_uring. */
  URING = 2,
}

struct BdevSpec {
  1: required BdevKind kind,
  /** URING: absolute path of the file or block device. */
  2: optional string path,
  /** RAM: size. URING: create the file with this size when it is missing. */
  3: optional i64 size_bytes,
}

struct PoolSpec {
  1: required string pool_id,
  /** Unique in the service; [A-Za-z0-9][A-Za-z0-9._-]{0,62}. */
  2: required string name,
  3: required BdevSpec bdev,
  /** Power of two, 64 KiB to 4 MiB; the service's default when absent. */
  4: optional i32 cluster_bytes,
  /** Format the device even if it holds a file system, a partition table or the like. It never overwrites another pool. */
  5: optional bool overwrite,
  /** Freed space goes back to the device: a file gets holes, an SSD is told (TRIM). Absent: it does. */
  6: optional bool discard,
}

struct PoolInfo {
  1: required string pool_id,
  2: required string name,
  3: required BdevSpec bdev,
  4: required i32 cluster_bytes,
  5: required i64 capacity_bytes,
  /** Space that new allocations can take. */
  6: required i64 free_bytes,
  /** Taken by data. */
  7: required i64 allocated_bytes,
  /** Promised to thick volumes and not yet taken. */
  8: required i64 reserved_bytes,
  /** Sum of the sizes of all volumes: what thin provisioning has promised. */
  9: required i64 provisioned_bytes,
  10: required i32 volumes,
  11: required i32 snapshots,
  /** Taken by the store's own metadata. */
  12: required i64 metadata_bytes,
  /** What new allocations cannot take, of the capacity. */
  13: optional i32 used_percent,
  /** The highest watermark that this has reached, see ServiceStats; 0: none. */
  14: optional i32 watermark_percent,
  /** provisioned_bytes of the capacity: above 100 thin provisioning has promised more than there is. */
  15: optional i64 provisioned_percent,
  /** Set while the pool has failed: its device answered a write of metadata or a flush with an error. It can be read, and
      takes no changes, until its device works again; the service tries by itself. */
  16: optional string failure,
  /** When that was. */
  17: optional i64 failed_at_ms,
  /** Whether freed space goes back to the device. */
  20: optional bool discard,
  /** How much did, since the pool was opened. */
  21: optional i64 discarded_bytes,
  /** Freed, and not given back yet. */
  22: optional i64 discard_pending_bytes,
  /** Set, with failure, when another owner has taken the pool: which. The service does not try to have it back; pool_import
      does, once no volume of it is in use here. */
  23: optional string lost_to,
}

enum JobState { RUNNING = 1, DONE = 2, FAILED = 3, CANCELLED = 4 }

/** A check of a pool's metadata, and how far it has come. Everything but the first fields counts what was found so far. */
struct PoolCheck {
  1: required string check_id,
  2: required string pool_id,
  3: required string pool,
  4: required JobState state,
  /** Mends what can be mended without guessing. */
  5: required bool repair,
  /** Volumes and snapshots walked, and in all. */
  6: required i64 done,
  7: required i64 total,
  /** Why it failed, or why the pool is not open after it. */
  8: optional string error,
  9: required i64 volumes,
  10: required i64 metadata_pages,
  11: required i64 data_clusters,
  12: required i64 replayed_records,
  /** In use and counted too low: could be given away a second time. */
  13: required i64 lost,
  14: required i64 doubly_used,
  /** Counted and not in use: space that does not come back. */
  15: required i64 leaked,
  /** Cannot be read, or makes no sense. */
  16: required i64 damaged,
  /** Of the four above. */
  17: required i64 repaired,
  /** A line each, at most 1000 and one more that says why a repair wrote nothing. */
  18: required list<string> findings,
}

// ---------------------------------------------------------------- volumes

enum Provisioning { THIN = 1, THICK = 2 }

struct QosLimits {
  /** 0 or absent: no limit. */
  1: optional i64 read_iops,
  2: optional i64 write_iops,
  3: optional i64 total_iops,
  4: optional i64 read_bytes_per_s,
  5: optional i64 write_bytes_per_s,
  6: optional i64 total_bytes_per_s,
  /**
   * Bursts: what a limit above, which must be set and not be higher, allows after a pause. 0 or absent: none. It is saved
   * up at the rate of the limit while that is not used: burst * length requests or bytes at most.
   */
  7: optional i64 read_burst_iops,
  8: optional i64 write_burst_iops,
  9: optional i64 total_burst_iops,
  10: optional i64 read_burst_bytes_per_s,
  11: optional i64 write_burst_bytes_per_s,
  12: optional i64 total_burst_bytes_per_s,
  /**
   * For how long a full burst lasts, 1 to 3600; 0 or absent: 1. With 1 what was saved up may be used at any rate, with
   * more at the rate of the burst.
   */
  13: optional i32 read_iops_burst_s,
  14: optional i32 write_iops_burst_s,
  15: optional i32 total_iops_burst_s,
  16: optional i32 read_bytes_burst_s,
  17: optional i32 write_bytes_burst_s,
  18: optional i32 total_bytes_burst_s,
}

struct VolumeSpec {
  1: required string volume_id,
  /** Friendly name, unique in the pool; 1 to 255 bytes of UTF-8. */
  2: required string name,
  3: required i64 size_bytes,
  4: required Provisioning provisioning,
  /**
   * The logical block size that guests see: 512 or 4096, whatever the pool's device has. Absent or 0: 512, and for a
   * clone that of its source, which it cannot change.
   */
  5: optional i32 block_bytes,
}

struct VolumeInfo {
  1: required string volume_id,
  2: required string name,
  3: required string pool,
  4: required i64 size_bytes,
  5: required Provisioning provisioning,
  /** True for a snapshot: read-only for ever. */
  6: required bool snapshot,
  /** The snapshot a clone came from, or the volume a snapshot was taken of; absent when there is none. */
  7: optional string parent_id,
  /** Space that this volume maps; shared clusters count for each that maps them. */
  8: required i64 mapped_bytes,
  9: required i64 created_at_ms,
  10: required i32 attachments,
  11: optional QosLimits qos,
  /** The logical block size that guests see. */
  12: optional i32 block_bytes,
}

struct VolumePage {
  1: required list<VolumeInfo> volumes,
  /** Pass as `after` to get the following page; absent on the last. */
  2: optional string next_after,
}

struct LatencyHistogram {
  /** Bucket i counts requests that took < 2^i microseconds and >= 2^(i-1). */
  1: required list<i64> buckets,
}

struct VolumeStats {
  1: required i64 read_ops,
  2: required i64 write_ops,
  3: required i64 flush_ops,
  4: required i64 unmap_ops,
  5: required i64 read_bytes,
  6: required i64 write_bytes,
  7: required i64 errors,
  8: optional LatencyHistogram read_latency,
  9: optional LatencyHistogram write_latency,
}

// ---------------------------------------------------------------- attachments

enum Transport { SCSI = 1, BLK = 2 }

/**
 * By which names a guest finds a SCSI disk under /dev/disk/by-id. POLLUX: scsi-3<16 digits> and wwn-0x<16 digits>, folded
 * from the volume's UUID. QEMU: scsi-0QEMU_QEMU_HARDDISK_<UUID>, as a disk of QEMU's own that has the UUID as its serial.
 */
enum ScsiNames { POLLUX = 1, QEMU = 2 }

struct AttachSpec {
  1: required string attachment_id,
  2: required string volume_id,
  /** The guest: for Nova the instance UUID. SCSI volumes of one client share one controller. */
  3: required string client_id,
  4: required Transport transport,
  /** Request queues; 0 means the service's default. */
  5: optional i32 queues,
  6: optional bool read_only,
  /** SCSI alone. Absent: POLLUX. */
  7: optional ScsiNames scsi_names,
}

struct AttachmentInfo {
  1: required string attachment_id,
  2: required string volume_id,
  3: required string client_id,
  4: required Transport transport,
  /** The vhost-user socket that the front end connects to. */
  5: required string socket_path,
  6: required i32 queues,
  7: required bool read_only,
  /** SCSI: the controller's name, the target and the LUN on it. BLK: absent. */
  8: optional string controller,
  9: optional i32 target,
  10: optional i32 lun,
  /** What the guest sees: BLK first 20 characters of the volume's UUID, SCSI the whole UUID. */
  11: required string serial,
  /** A front end is connected. */
  12: required bool connected,
  13: required string host_id,
  /** SCSI. */
  14: optional ScsiNames scsi_names,
}

/**
 * What Cinder allows: this host may attach this volume. A host may hold several grants of one volume, one for each of its
 * guests; it may attach the volume until the last of them is taken back, and write to it while one of them allows that.
 */
struct Authorisation {
  1: required string volume_id,
  /** CN of the compute host's client certificate. */
  2: required string host,
  3: optional bool read_only,
  /** A UUID of the caller's; absent: the nil UUID. The same grant again replaces what it allowed. */
  4: optional string grant_id,
}

// ---------------------------------------------------------------- data sockets and jobs

struct DataSocketSpec {
  1: required string socket_id,
  2: required string volume_id,
  3: optional bool read_only,
  /**
   * Writes the volume even while a guest, or another data socket that is shared too, writes it; without it the volume has
   * one such writer, and the other is refused as BUSY, whichever came first. Nothing to one that is read-only.
   */
  4: optional bool shared,
}

struct DataSocketInfo {
  1: required string socket_id,
  2: required string volume_id,
  /** Local UNIX socket that speaks NBD (fixed newstyle). */
  3: required string path,
  /** NBD export name. */
  4: required string export_name,
  5: required bool read_only,
}

struct JobInfo {
  1: required string job_id,
  /** "flatten", "delete", "check", "trim", ... */
  2: required string kind,
  /** Of a check or trim: the pool's. */
  3: required string volume_id,
  4: required JobState state,
  /** Work done and in all, in the job's own unit (clusters; of a check: volumes). */
  5: required i64 done,
  6: required i64 total,
  7: optional string error,
}

service PolluxService {
  // Roles in brackets: who may call.
  /** [all] */
  ServiceInfo describe(1: RequestContext ctx) throws (1: PolluxError e),
  /** [all] */
  ServiceStats stats(1: RequestContext ctx) throws (1: PolluxError e),

  /**
   * [admin] Formats the device and opens the pool. A device that already holds a pool is EXISTS, unless it is this one; so
   * is one on which blkid recognises something, unless overwrite is set.
   */
  PoolInfo pool_create(1: RequestContext ctx, 2: PoolSpec spec) throws (1: PolluxError e),
  /**
   * [admin] Opens a pool that the device already holds. BUSY while a service has it open, also one that sees the device
   * under another name or from another host; an owner that is silent for 8 s counts as dead. With force it is taken
   * away from one that is alive: that one stops to write when it notices, 2 s later or when it runs again. What its
   * guests wrote in between is lost, and may have damaged the pool: check it. A pool that this service lost to another in
   * that way is opened anew; BUSY while a volume of it is attached or has a data socket. One that another service has
   * used since is not opened, with force neither, while guests that were attached to it before are attached here.
   */
  PoolInfo pool_import(1: RequestContext ctx, 2: BdevSpec bdev, 3: bool force) throws (1: PolluxError e),
  /** [admin] Closes the pool and forgets it; its data stays on the device. BUSY while a volume of it is attached. */
  void pool_export(1: RequestContext ctx, 2: string pool) throws (1: PolluxError e),
  /** [all] Pools are named by name or id in every call. */
  list<PoolInfo> pool_list(1: RequestContext ctx) throws (1: PolluxError e),
  PoolInfo pool_describe(1: RequestContext ctx, 2: string pool) throws (1: PolluxError e),
  /**
   * [admin] Checks the pool's metadata as a job, and repairs it. An open pool is closed for it and opened again: BUSY while
   * a volume of it is attached, has an open data socket or a job. Calls that need it meanwhile get RETRY. A pool that did
   * not open is opened when it can be afterwards. `pool` may also be the absolute path of a device that holds a pool of
   * no service. The same check_id again answers that check as it stands; a restart forgets checks.
   */
  PoolCheck pool_check(1: RequestContext ctx, 2: string pool, 3: string check_id, 4: bool repair) throws (1: PolluxError e),
  /** [admin] How a check stands or ended; the last 16 are remembered. */
  PoolCheck pool_check_describe(1: RequestContext ctx, 2: string check_id) throws (1: PolluxError e),

  /** [admin] Whether space that is freed from now on goes back to the device. Durable. */
  PoolInfo pool_set_discard(1: RequestContext ctx, 2: string pool, 3: bool discard) throws (1: PolluxError e),
  /**
   * [admin] Gives all free space back to the device, as a job: what was freed while discard was off, and what a crash
   * left. Guests go on. BUSY while another trim of the pool runs. The same job_id again answers that job as it stands.
   */
  JobInfo pool_trim(1: RequestContext ctx, 2: string pool, 3: string job_id) throws (1: PolluxError e),

  /** [admin, cinder] */
  VolumeInfo volume_create(1: RequestContext ctx, 2: string pool, 3: VolumeSpec spec) throws (1: PolluxError e),
  /** [admin, cinder] Volume or snapshot; space comes back in the background. BUSY while attached. Clones of a deleted snapshot stay. */
  void volume_delete(1: RequestContext ctx, 2: string volume_id) throws (1: PolluxError e),
  /** [admin, cinder] Grows; connected guests are told. A smaller size is INVALID. */
  VolumeInfo volume_extend(1: RequestContext ctx, 2: string volume_id, 3: i64 size_bytes) throws (1: PolluxError e),
  /** [all] */
  VolumeInfo volume_describe(1: RequestContext ctx, 2: string volume_id) throws (1: PolluxError e),
  /** [all] Volumes and snapshots of a pool in order of id; limit 0 means 1000. */
  VolumePage volume_list(1: RequestContext ctx, 2: string pool, 3: string after, 4: i32 limit) throws (1: PolluxError e),
  /** [admin, cinder] A read-only point-in-time copy, taken at once whatever the size. */
  VolumeInfo snapshot_create(1: RequestContext ctx, 2: string volume_id, 3: string snapshot_id, 4: string name) throws (1: PolluxError e),
  /** [admin, cinder] A writable volume from a snapshot; size_bytes 0 keeps the snapshot's size, larger grows. */
  VolumeInfo volume_clone(1: RequestContext ctx, 2: string snapshot_id, 3: VolumeSpec spec) throws (1: PolluxError e),
  /** [admin, cinder] The volume's content becomes the snapshot's. BUSY while attached. */
  VolumeInfo volume_revert(1: RequestContext ctx, 2: string volume_id, 3: string snapshot_id) throws (1: PolluxError e),
  /** [admin, cinder] Gives a clone its own copy of all shared clusters, as a job. */
  JobInfo volume_flatten(1: RequestContext ctx, 2: string volume_id, 3: string job_id) throws (1: PolluxError e),
  /** [admin, cinder] */
  VolumeInfo volume_set_qos(1: RequestContext ctx, 2: string volume_id, 3: QosLimits limits) throws (1: PolluxError e),
  /** [all] */
  VolumeStats volume_stats(1: RequestContext ctx, 2: string volume_id) throws (1: PolluxError e),

  /** [admin, cinder] Lets the compute host attach the volume; durable until unauthorised. */
  void authorise(1: RequestContext ctx, 2: Authorisation authorisation) throws (1: PolluxError e),
  /**
   * [admin, cinder] Takes it back; empty host means every host, empty grant_id every grant of the host. Attachments of a
   * host that has no grant left are dropped. A grant_id without host is INVALID.
   */
  void unauthorise(1: RequestContext ctx, 2: string volume_id, 3: string host, 4: string grant_id) throws (1: PolluxError e),
  /** [all] Empty volume_id lists all. */
  list<Authorisation> authorisation_list(1: RequestContext ctx, 2: string volume_id) throws (1: PolluxError e),

  /**
   * [admin, compute] Places a socket. compute needs an authorisation for the host its certificate names. BUSY: it would
   * write what a data socket writes that is not shared.
   */
  AttachmentInfo attach(1: RequestContext ctx, 2: AttachSpec spec) throws (1: PolluxError e),
  /** [admin, cinder, compute] */
  void detach(1: RequestContext ctx, 2: string attachment_id) throws (1: PolluxError e),
  /** [all] Empty volume_id or client_id: any. */
  list<AttachmentInfo> attachment_list(1: RequestContext ctx, 2: string volume_id, 3: string client_id) throws (1: PolluxError e),
  /**
   * [admin, compute] The scsi controller of a guest, made when it is missing: its socket exists before the first
   * volume is attached, and outlives the last one until controller_delete.
   */
  string controller_ensure(1: RequestContext ctx, 2: string client_id, 3: i32 queues) throws (1: PolluxError e),
  /** [admin, compute] BUSY while volumes are attached to it. */
  void controller_delete(1: RequestContext ctx, 2: string client_id) throws (1: PolluxError e),

  /**
   * [admin, cinder] Opens a local NBD socket on a volume or snapshot. Gone when the service stops. One that nobody has been
   * connected to for data.abandoned_after_s is closed when its volume is deleted, when somebody else wants to write that,
   * or when all sockets are in use. BUSY: it would write what others write, see DataSocketSpec.
   */
  DataSocketInfo data_open(1: RequestContext ctx, 2: DataSocketSpec spec) throws (1: PolluxError e),
  /**
   * [admin, cinder] Ends the socket's connections, carries out at once what they have sent, whatever the volume's QoS
   * limits, flushes and closes. RETRY: the device does not answer. INTERNAL: it is closed, and what was
   * written to it may not be durable.
   */
  void data_close(1: RequestContext ctx, 2: string socket_id) throws (1: PolluxError e),

  /** [all] */
  list<JobInfo> job_list(1: RequestContext ctx) throws (1: PolluxError e),
  /** [admin, cinder] */
  void job_cancel(1: RequestContext ctx, 2: string job_id) throws (1: PolluxError e),
}
