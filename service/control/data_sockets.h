#pragma once
// DataSockets: the NBD sockets that data_open makes, by id. They live in memory alone and are gone when the service
// stops. Any control thread, never a reactor. Changes of one socket are serialised; one whose device does not answer
// keeps nobody but its own callers waiting.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/uuid.h"
#include "control/deadline.h"
#include "control/nbd_server.h"
#include "control/volume_writers.h"
#include "reactor/reactor.h"
#include "volume/volume_service.h"

namespace pollux::control {

struct DataSocketRequest {
  Uuid id;
  Uuid volume;
  bool read_only = false;
  bool shared = false;  // though others write the volume

  bool operator==(const DataSocketRequest&) const = default;
};

struct DataSocket {
  Uuid id;
  Uuid volume;
  std::string path;
  std::string export_name;
  bool read_only = false;
};

class DataSockets {
 public:
  struct Options {
    std::string dir;
    std::string group;  // empty: the process's own
    std::uint32_t max_sockets = 64;
    std::uint32_t max_connections = 8;
    // A socket that nobody has been connected to for so long belongs to a process that died.
    std::uint64_t abandoned_after_ms = 60'000;
    std::shared_ptr<VolumeWriters> writers = std::make_shared<VolumeWriters>();
  };

  // Removes sockets that an earlier process left in the folder. kInvalid: no such group.
  static Result<std::unique_ptr<DataSockets>> start(reactor::ReactorGroup& reactors, volume::VolumeService& volumes,
                                                    Options options);

  // A snapshot opens read-only whatever was asked for. kBusy: others write the volume, see VolumeWriters. kRetry: all
  // sockets are in use, and none is abandoned.
  Result<DataSocket> open(const DataSocketRequest& request, Deadline deadline);
  // Ends every connection, flushes, removes the socket. What has arrived is carried out, at once whatever limits the
  // volume has. kRetry: the device does not answer; the socket stays, and the call can be repeated. Any other error means
  // that it is closed, and what was written may not be durable. What is not there is closed.
  Status close(const Uuid& id, Deadline deadline);
  // close() of those that are abandoned: of one volume, or of any. What cannot be closed is logged and stays.
  void close_abandoned(const std::optional<Uuid>& volume, Deadline deadline);
  // close() of all, at the end of the service; failures are logged.
  void close_all();

 private:
  DataSockets(reactor::ReactorGroup& reactors, volume::VolumeService& volumes, Options options)
      : reactors_(reactors), volumes_(volumes), options_(std::move(options)) {}

  struct Open {
    std::timed_mutex turn;  // held by the call that opens or closes it
    DataSocketRequest request;
    DataSocket socket;                  // under turn
    VolumeWriters::Claim claim;         // under turn; of one that writes
    std::unique_ptr<NbdServer> server;  // under turn; null: being opened, or closed
  };
  // The entry of the id with its turn, and null when there is none.
  struct Held {
    std::shared_ptr<Open> open;
    std::unique_lock<std::timed_mutex> turn;
  };
  Result<Held> hold(const Uuid& id, Deadline deadline);
  // A new entry with its turn; kExists when there is one.
  Result<Held> reserve(const DataSocketRequest& request);
  Status serve(Open& open, Deadline deadline);
  // Both under the entry's turn.
  Status end(Open& open, Deadline deadline);
  void forget(const Open& open);

  reactor::ReactorGroup& reactors_;
  volume::VolumeService& volumes_;
  const Options options_;
  std::optional<gid_t> gid_;
  std::mutex mutex_;
  std::map<Uuid, std::shared_ptr<Open>> open_;  // under mutex_
};

}  // namespace pollux::control
